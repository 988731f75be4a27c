"""Planning: shards, units, columns and the fingerprint of a job, before anything is started."""
