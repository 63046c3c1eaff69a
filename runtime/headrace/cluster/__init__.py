"""Several replicas as one server: who is there, a balancer in front of them, and calls that concern all of them."""
