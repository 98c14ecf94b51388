"""The report as one HTML file that needs no network: tables, charts, curves, pictures, audit, provenance."""

from benchmark.show.page.build import Section, render_page

__all__ = ["Section", "render_page"]
