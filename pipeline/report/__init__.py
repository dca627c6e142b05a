"""`make report`: one HTML page of what the last run gave, made of files alone.

files.py reads them, results.py and lineage.py say what the page says, charts.py draws, and
page.html.j2 with style.css is how it looks.
"""
