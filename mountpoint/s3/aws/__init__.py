"""What is specific to AWS: endpoints, credentials, regions, EC2 instances, profiles, proxies."""
