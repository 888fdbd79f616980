"""Pictures of data, results and training. matplotlib is used without pyplot, so nothing global is changed."""
