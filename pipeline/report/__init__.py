"""``duet report``: a prepared folder, or the output of runs, as one HTML page without scripts.

stage.py      what a folder is, and where its page goes
dataset/      a prepared folder -> sections, from rows (lengths), windows (what another window
              would cut and cost) and padding (batch plans)
run/          output folders -> Runs (output.py) -> sections
chat.py       pairs as chat
charts.py     numbers -> pictures (matplotlib), svg.py: a figure -> SVG in the page's colours
page.py       sections -> HTML: page.html.jinja, which escapes all text, and page.css
"""
