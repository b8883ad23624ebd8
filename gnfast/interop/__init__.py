"""Where gnfast meets PyTorch's own machinery: what surrounds a call, wrappers, the compiler, devices by name."""
