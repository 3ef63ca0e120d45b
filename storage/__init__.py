"""What lies on disk: study file, layout, Zarr store, marks, lock, BOLD readers and exports."""
