from tests.dashboard.site import home

__all__ = ["home"]
