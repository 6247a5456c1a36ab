"""Internal: Python values as messages of the contract, and back. Client and server share it."""
