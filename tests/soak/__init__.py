"""The soak test: a daemon under mixed, hostile and faulty use, and checks for what it leaves behind."""
