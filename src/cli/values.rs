//! What the values of flags look like, with their bounds: text → value, or a sentence that says what was expected.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

use crate::config::Listen;

/// Where a user wants to listen.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) listen: Listen,
    /// The scheme was given.
    pub(super) explicit: bool,
}

impl Place {
    /// With a certificate, addresses without a scheme are encrypted.
    pub(super) fn resolve(self, has_certificate: bool) -> Listen {
        match self.listen {
            Listen::Tcp(address) if has_certificate && !self.explicit => Listen::Tls(address),
            listen => listen,
        }
    }
}

pub(super) fn place(text: &str) -> Result<Place, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err("the path of the socket is missing".into());
        }
        return Ok(Place { listen: Listen::Unix(path.into()), explicit: false });
    }
    let (rest, encrypted, explicit) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest.trim_end_matches('/'), false, true),
        (None, Some(rest)) => (rest.trim_end_matches('/'), true, true),
        (None, None) => (text, false, false),
    };
    let address = match rest.strip_prefix(':') {
        Some(port) => {
            let port = port.parse().map_err(|_| "expected a port after the colon, as in :8080")?;
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
        }
        None => address(rest)?,
    };
    Ok(Place { listen: if encrypted { Listen::Tls(address) } else { Listen::Tcp(address) }, explicit })
}

/// The address that a user gives, as a host and a port or as the server prints it.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").map_or(text, |rest| rest.trim_end_matches('/'));
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|error| format!("{error}; expected a host and a port, as in 127.0.0.1:8080"))?;
    addresses.next().ok_or_else(|| "the host name has no address".into())
}

/// A host and a port, which is not looked up yet.
pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains('/') && number::<u16>(1..=65_535)(port).is_ok() =>
        {
            Ok(text.to_owned())
        }
        _ => Err("expected a host and a port, as in 127.0.0.1:6379".into()),
    }
}

pub(super) fn no_port(port: &str) -> Result<String, String> {
    Err(format!("the port is a part of the address: --listen 127.0.0.1:{port}"))
}

/// The permissions of a file.
pub(super) fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, as in 660".into()),
    }
}

/// The number of a group.
pub(super) fn group(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => {
            uzers::get_group_by_name(text).map(|group| group.gid()).ok_or("there is no such group".into())
        }
    }
}

/// A name as a `Host` may have it.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("expected names without scheme, port and wildcards, as in kv.example.com".into())
    }
}

/// A whole number within bounds.
pub(super) fn number<T: TryFrom<u64>>(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match *bounds.end() {
            u64::MAX => {
                format!("expected a whole number of at least {}, and of 64 bits at most", bounds.start())
            }
            most => format!("expected a whole number from {} to {most}", bounds.start()),
        })
    }
}

/// A size.
pub(super) fn any_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "expected a size, as in 64MiB or 1.5GB".into())
}

/// A size within bounds.
pub(super) fn size(bounds: RangeInclusive<usize>) -> impl Fn(&str) -> Result<ByteSize, String> + Clone {
    move |text| {
        let size = any_size(text)?;
        let (least, most) = (*bounds.start() as u64, *bounds.end() as u64);
        if (least..=most).contains(&size.as_u64()) {
            Ok(size)
        } else {
            Err(format!("expected {} to {}", ByteSize(least), ByteSize(most)))
        }
    }
}

/// A duration within bounds.
pub(super) fn duration(
    bounds: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let duration = humantime::parse_duration(text)
            .map_err(|error| format!("{error}; expected a duration, as in 100ms or 5m"))?;
        if bounds.contains(&duration) {
            return Ok(duration);
        }
        let least = humantime::format_duration(*bounds.start());
        Err(match *bounds.end() {
            Duration::MAX => format!("expected {least} or more"),
            most => format!("expected {least} to {}", humantime::format_duration(most)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_as_the_server_prints_it_and_a_wrong_one_is_explained() {
        for text in ["127.0.0.1:80", "http://127.0.0.1:80", "http://127.0.0.1:80/"] {
            assert_eq!(address(text).unwrap(), SocketAddr::from(([127, 0, 0, 1], 80)));
        }
        assert!(address("[::1]:80").unwrap().is_ipv6());
        for (text, shown) in [
            (":80", "http://[::]:80"),
            ("http://:80", "http://[::]:80"),
            ("[::1]:80", "http://[::1]:80"),
            ("https://:80/", "https://[::]:80"),
            ("unix:/run/a b", "unix:/run/a b"),
        ] {
            assert_eq!(place(text).unwrap().resolve(false).to_string(), shown);
        }
        for (text, shown) in [
            ("127.0.0.1:80", "https://127.0.0.1:80"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("unix:/run/a", "unix:/run/a"),
        ] {
            assert_eq!(place(text).unwrap().resolve(true).to_string(), shown, "with a certificate");
        }
        for (text, hint) in
            [("unix:", "path"), (":x", ":8080"), ("80", "as in 127.0.0.1:8080"), ("127.0.0.1", "a port")]
        {
            let error = place(text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn sizes_and_durations_have_bounds_and_an_error_names_them() {
        let (size, time) =
            (size(1 << 20..=4 << 30), duration(Duration::from_secs(1)..=Duration::from_secs(86_400)));
        assert_eq!(size("4GiB").unwrap().as_u64(), 4 << 30);
        assert_eq!(size("1048575").unwrap_err(), "expected 1.0 MiB to 4.0 GiB");
        for text in ["", "lots", "-1", "5XB", "1.5.2MiB"] {
            assert_eq!(size(text).unwrap_err(), "expected a size, as in 64MiB or 1.5GB");
        }
        for text in ["", "x", "-1", "0", "65", "1.5"] {
            assert_eq!(number::<u16>(1..=64)(text).unwrap_err(), "expected a whole number from 1 to 64");
        }
        assert_eq!(
            number::<u64>(1..=u64::MAX)("0").unwrap_err(),
            "expected a whole number of at least 1, and of 64 bits at most"
        );
        assert_eq!(number::<u16>(1..=64)("64"), Ok(64));
        assert_eq!(time("1day").unwrap(), Duration::from_secs(86_400));
        assert_eq!(time("25h").unwrap_err(), "expected 1s to 1day");
        assert!(time("10").unwrap_err().contains("as in 100ms"));
        let interval = duration(Duration::from_millis(10)..=Duration::MAX);
        assert_eq!(interval("9ms").unwrap_err(), "expected 10ms or more");
    }
}
