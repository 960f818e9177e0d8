"""Learning: methods, strategies and evaluation. Only devices import torch; nothing uses MQTT."""
