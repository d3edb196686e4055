"""What this machine is, and how busy with other things."""
