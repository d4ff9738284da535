"""``duet report``: a prepared folder, or the output of runs, as one HTML page without scripts.

stage.py      what a folder is, and where its page goes
dataset.py    a prepared folder -> sections, from rows.py (lengths), windows.py (what another
              window would cut and cost), padding.py (batch plans) and chat.py (pairs as chat)
runs.py       an output folder -> a Run; curves.py, run_page.py: runs -> sections
charts.py     numbers -> pictures (matplotlib), svg.py: a figure -> SVG in the page's colours
page.py       sections -> HTML: page.html.jinja, which escapes all text, and page.css
"""
