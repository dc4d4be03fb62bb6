"""AWS specifics: endpoints and regions, credentials, EC2 instances, profiles, proxies."""
