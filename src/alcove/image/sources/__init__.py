"""Where images come from: container images as OCI layouts, and the tools tree with its kernel."""
