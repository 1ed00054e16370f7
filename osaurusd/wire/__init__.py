"""Types that the daemon and `osaurusctl` share. Imports nothing else of this project."""
