"""Statistics of states in place of states: counts, means and covariances in one pass, mergeable."""
