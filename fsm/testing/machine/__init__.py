"""What every machine must do: machine_test."""
