"""What every store must do: StoreConformance."""
