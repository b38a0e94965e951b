"""Flower's apps, as they are, on a fleet of ours. Nothing else imports Flower.

    pyproject.toml ─▶ app ─▶ ServerApp(grid) ─▶ an exchange ─▶ devices ─▶ client ─▶ ClientApp
                             FleetGrid          a batch of messages       Answerer

What is used of Flower is public, but for what private.py names.
"""
