//! Where gRPC calls go.

use crate::rpc::dial::HostPort;

/// The parsed address of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All addresses of one name.
    Name(HostPort),
    /// A fixed list.
    List(Vec<HostPort>),
}

impl Target {
    /// `host:port`, `dns:///host:port` or `grpc-list://h1:p,h2:p`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(list) = text.strip_prefix("grpc-list://") {
            let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
            let list: Vec<_> = items.map(HostPort::parse).collect::<Option<_>>()?;
            return (!list.is_empty()).then_some(Self::List(list));
        }
        let name = text.strip_prefix("dns:///").or_else(|| text.strip_prefix("dns:")).unwrap_or(text);
        HostPort::parse(name).map(Self::Name)
    }

    /// What the calls name as their server.
    pub fn authority(&self) -> String {
        match self {
            Self::Name(name) => name.authority(),
            Self::List(list) => list[0].authority(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_names_or_lists() {
        let name = Target::Name(HostPort::parse("app:50051").unwrap());
        assert_eq!(Target::parse("app:50051"), Some(name.clone()));
        assert_eq!(Target::parse("dns:///app:50051"), Some(name));
        let Some(Target::List(list)) = Target::parse("grpc-list://a:1, b:2,[::1]:3") else { panic!() };
        assert_eq!(list.iter().map(HostPort::authority).collect::<Vec<_>>(), ["a:1", "b:2", "[::1]:3"]);
        for text in ["", "app", "grpc-list://", "grpc-list://a", "xds:///a:1", "dns://8.8.8.8/a:1"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }
}
