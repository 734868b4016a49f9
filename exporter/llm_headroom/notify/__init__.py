"""Messages to people about states, for those who have no Alertmanager."""
