"""The agent as a component of Greengrass V2, for the classic nucleus and for lite.

app, wheels ─▶ artifact.py ─▶ zip ─▶ publish.py ─▶ bucket, component version ─▶ deployment to a thing group
                              recipe.py: what the nucleus is told to do with it

Nothing here was run on a nucleus.
"""
