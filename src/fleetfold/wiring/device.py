"""What runs on a device: its journal in SQLite, its way to objects over signed addresses."""
