"""The processes of a run: joining, sharding, signals."""
