"""The addresses from which pictures are fetched: those of public servers only.

An address is checked as a number, after the name was resolved. IPv4 is a list of what is not public, by IANA's
registry of special addresses (RFC 6890 and its successors); IPv6 is a list of what is (2000::/3, the only range from
which IANA assigns addresses of the Internet) without its special parts. The ranges that contain an IPv4 address
(mapped, NAT64, 6to4, Teredo) are not public, since that address can be any.
"""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network, unspecified
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by providers; metadata of Alibaba Cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform, reached from every virtual machine
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols; metadata of Oracle Cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # measurements
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_IPV6 = ip_network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Return True if an address in its numeric form belongs to a public server. Text of another form is not one."""
    try:
        number = ip_address(address)
    except ValueError:
        return False
    if isinstance(number, IPv6Address):
        return number in _PUBLIC_IPV6 and not any(number in network for network in _NOT_PUBLIC_IPV6)
    return not any(number in network for network in _NOT_PUBLIC_IPV4)
