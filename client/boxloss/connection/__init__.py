"""Internal: the channel to the servers, with its credentials, retries, statuses and traces."""
