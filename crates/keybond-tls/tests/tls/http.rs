//! HTTP/1.1 over a connection that the test can still look into.

use std::{future::poll_fn, pin::pin};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{Connection, SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use keybond_tls::{TlsConn, TlsError, TlsInfo};

pub(crate) struct Http {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<Box<dyn TlsConn>>, Full<Bytes>>,
}

impl Http {
    pub(crate) async fn over(connection: Box<dyn TlsConn>) -> Self {
        let (sender, connection) = handshake(TokioIo::new(connection)).await.unwrap();
        Self { sender, connection }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Response<Bytes>, TlsError> {
        self.send(Request::get(path).body(Full::default()).unwrap())
            .await
    }

    pub(crate) async fn post(
        &mut self,
        path: &str,
        body: &[u8],
    ) -> Result<Response<Bytes>, TlsError> {
        let body = Full::new(Bytes::copy_from_slice(body));
        self.send(Request::post(path).body(body).unwrap()).await
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, TlsError> {
        request
            .headers_mut()
            .insert("host", "localhost".parse().unwrap());
        let answer = pin!(async {
            let answer = self.sender.send_request(request).await?;
            collect(answer).await
        });
        let connection = &mut self.connection;
        let driving = poll_fn(|context| connection.poll_without_shutdown(context));
        let mut answer = answer;
        tokio::select! {
            biased;
            answer = &mut answer => answer.map_err(|error| cause(&error)),
            // When the connection ends first, it knows why.
            ended = driving => match ended {
                Ok(()) => answer.await.map_err(|error| cause(&error)),
                Err(error) => Err(cause(&error)),
            },
        }
    }

    /// What the connection says about itself. It is closed by this.
    pub(crate) fn info(self) -> TlsInfo {
        self.connection.into_parts().io.into_inner().info()
    }
}

async fn collect(answer: Response<Incoming>) -> Result<Response<Bytes>, hyper::Error> {
    let (head, body) = answer.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

fn cause(error: &hyper::Error) -> TlsError {
    TlsError::find(error)
        .unwrap_or_else(|| panic!("{error:?} has no TLS cause"))
        .clone()
}
