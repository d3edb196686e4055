"""The paper's claims beside simulations: set-ups, runs, tables and figures."""
