"""`make report`: one HTML page of the last run's results, from files alone.

files.py reads them, results.py and lineage.py derive what they do not hold, and page.html.j2 with
style.css is the page.
"""
