"""(until flow's is here)"""
from cyclopts import App
from fleetfold.cli.flower_bridge import bridge
flower = App(name="flower", help="Flower's apps on the fleet.")
flower.command(bridge)
