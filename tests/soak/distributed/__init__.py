"""`make soak-distributed`: run models on three hosts while hosts, links and ranks fail."""
