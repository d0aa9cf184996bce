"""The article's benchmark, in parts.

`cases`, `rows` and `methods` say what is measured, `job` and `run` do it, `results` and `bars` draw it together,
`table`, `figures`, `remarks` and `report` show it. ``python benchmarks/article.py`` runs it.
"""
