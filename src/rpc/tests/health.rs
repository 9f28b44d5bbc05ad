//! Applications over gRPC that say how they are.

use super::grpc::Stub;
use super::server::{Handler, Server, Version};
use super::*;
use crate::rpc::proto::health::health_check_response::ServingStatus::{self, NotServing, Serving};
use crate::rpc::proto::health::health_server::{Health, HealthServer};
use crate::rpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use futures_util::Stream;
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tower_service::Service;

/// A health service whose word a test gives.
#[derive(Clone)]
struct Doctor {
    word: watch::Sender<ServingStatus>,
    /// Questions that stand.
    standing: Arc<AtomicUsize>,
}

struct Standing(Arc<AtomicUsize>);

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Health for Doctor {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.into_inner().service, "anycable.RPC");
        self.standing.fetch_add(1, Ordering::SeqCst);
        let mut words = self.word.subscribe();
        words.mark_changed();
        let standing = Standing(self.standing.clone());
        let stream = futures_util::stream::unfold((words, standing), async |(mut words, standing)| {
            words.changed().await.ok()?;
            let status = (*words.borrow_and_update()).into();
            Some((Ok(HealthCheckResponse { status }), (words, standing)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// An application with a health service.
struct Patient {
    stub: Stub,
    doctor: Doctor,
    server: Server,
}

impl Patient {
    async fn start() -> Self {
        let stub = Stub::default();
        let doctor = Doctor { word: watch::Sender::new(Serving), standing: Arc::default() };
        let (commands, health) = (stub.handler(), HealthServer::new(doctor.clone()));
        let handler: Handler = Arc::new(move |request| {
            if request.uri().path().starts_with("/anycable.RPC/") {
                return commands(request);
            }
            let mut health = health.clone();
            Box::pin(async move { health.call(request).await.unwrap().map(BodyExt::boxed_unsync) })
        });
        let server = Server::start(Version::Http2, handler).await;
        Self { stub, doctor, server }
    }

    fn says(&self, word: ServingStatus) {
        self.doctor.word.send_replace(word);
    }

    fn standing(&self) -> usize {
        self.doctor.standing.load(Ordering::SeqCst)
    }
}

async fn two() -> (Patient, Patient, Arc<dyn Application>) {
    let (one, other) = (Patient::start().await, Patient::start().await);
    let app = application(&format!("grpc-list://{},{}", one.server.address, other.server.address), |_| {});
    eventually("both are asked how they are", async || {
        app.command(&"s1".into(), message("")).await.unwrap();
        one.standing() == 1 && other.standing() == 1
    })
    .await;
    (one, other, app)
}

/// How many of ten commands come to this one.
async fn share(app: &Arc<dyn Application>, of: &Patient) -> usize {
    let before = of.stub.asked();
    for _ in 0..10 {
        app.command(&"s1".into(), message("")).await.unwrap();
    }
    of.stub.asked() - before
}

#[tokio::test]
async fn who_does_not_serve_is_not_called_until_it_serves_again() {
    let (one, other, app) = two().await;
    assert_eq!(share(&app, &one).await, 5);
    one.says(NotServing);
    eventually("the other gets all calls", async || share(&app, &other).await == 10).await;
    one.says(Serving);
    eventually("both get calls again", async || share(&app, &one).await == 5).await;
    assert_eq!((one.server.connections(), other.server.connections()), (1, 1), "the connections stayed");
}

#[tokio::test]
async fn where_nobody_serves_all_are_called() {
    let (one, other, app) = two().await;
    one.says(NotServing);
    eventually("the other gets all calls", async || share(&app, &other).await == 10).await;
    other.says(NotServing);
    eventually("both get calls", async || share(&app, &one).await == 5).await;
}

#[tokio::test]
async fn a_server_that_stops_gracefully_is_not_kept_by_the_question_for_its_health() {
    let patient = Patient::start().await;
    let app = application(&patient.server.address.to_string(), |_| {});
    app.command(&"s1".into(), message("")).await.unwrap();
    eventually("it is asked", async || patient.standing() == 1).await;
    // Nobody calls: that the connection is to end is noticed all the same.
    patient.server.retire_connections();
    eventually("another connection", async || patient.server.connections() == 2).await;
    eventually("one question", async || patient.standing() == 1).await;
}

#[tokio::test]
async fn the_question_ends_with_the_client() {
    let patient = Patient::start().await;
    let app = application(&patient.server.address.to_string(), |_| {});
    app.command(&"s1".into(), message("")).await.unwrap();
    eventually("it is asked", async || patient.standing() == 1).await;
    drop(app);
    eventually("nobody asks", async || patient.standing() == 0).await;
}

#[tokio::test]
async fn nobody_is_asked_if_that_is_switched_off() {
    let patient = Patient::start().await;
    patient.says(NotServing);
    let app = application(&patient.server.address.to_string(), |config| config.health_watch = false);
    assert_eq!(share(&app, &patient).await, 10);
    assert_eq!(patient.standing(), 0);
}
