"""Long jobs on a loaded model, which survive being killed: calibrate, quantize."""
