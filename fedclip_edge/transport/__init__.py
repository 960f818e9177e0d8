"""The ways that messages travel: MQTT over a real broker, or queues in one process."""
