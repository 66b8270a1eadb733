"""The studio: a page on which people ask, correct, compare, browse and revoke, mounted on the service at ``/studio``.

What uses gradio enters here, and nothing else of the service knows of it. `counter` does for the page what the API does
for programs, through the same engine and the same admission; `shown` turns what came of it into HTML; the other
modules are the page's tabs, and `door` is what stands before it.
"""
