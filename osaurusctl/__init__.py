"""osaurusctl: the control CLI of osaurusd."""
