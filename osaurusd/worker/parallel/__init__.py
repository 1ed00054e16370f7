"""Where the steps of a model run: in this process (`local`), or on the ranks of a group (`leader` and `follower`)."""
