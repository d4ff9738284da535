"""The settings of ``duet report``."""

from dataclasses import dataclass

from pipeline.config.fields import NAMED, REQUIRED, Settings, at_least, option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Settings of ``duet report``: a prepared folder, or output folders of fit, as one page."""

    folders: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="Prepared folder; or one or more output folders of fit, which are compared.",
        positional=True,
    )
    output_path: str | None = option(
        None, NAMED, help="HTML file to write. Default: NAME.report.html beside the folder."
    )
    pairs: int = option(
        6, at_least(0), help="Number of pairs of a prepared folder to show as chat."
    )
