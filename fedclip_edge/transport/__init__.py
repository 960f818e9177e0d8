"""Message transports: MQTT over a real broker, or queues within one process."""
