"""Types that the daemon and the control CLI share. A leaf: imports nothing else of ours."""
