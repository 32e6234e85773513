"""How facts become markup: badges, lines of source, templates."""
