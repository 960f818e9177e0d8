"""Parts that the web pages of the coordinator and of the device share."""
