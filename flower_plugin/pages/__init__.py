"""
One module per page: a function from queries to the template's context, tested without Tornado.

A page is registered by one line in :data:`flower_plugin.pages.registry.PAGES`.
"""
