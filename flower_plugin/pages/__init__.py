"""
One module a page: a function from queries to what the template shows, tested without Tornado.

A page is registered by one line in :data:`flower_plugin.routes.PAGES`.
"""
