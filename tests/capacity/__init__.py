"""How many users one host serves, from measured figures; checked against a simulation of the schedulers."""
