"""The load generator: asks any V2 server in a closed or an open loop, and says what it was like.

`arrivals` says when, `messages` what, the kernels send it, `analysis` makes numbers of what came back, `report` pictures.
"""
