"""The faces of the registry: trackers, streams, sweeper, worker, retention."""
