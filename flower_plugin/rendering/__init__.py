"""Markup: badges, source lines, templates."""
