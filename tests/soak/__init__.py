"""A daemon under mixed, rude and faulty use for minutes, and what it must look like afterwards."""
