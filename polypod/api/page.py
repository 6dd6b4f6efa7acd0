"""The page at /docs: Swagger UI, from files that BentoML brings; nothing comes from elsewhere."""

from __future__ import annotations

from html import escape


def docs_page(title: str) -> str:
    return _PAGE.replace("TITLE", escape(title))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "docs.json", dom_id: "#docs", deepLinking: true})</script>
</body>
</html>
"""
